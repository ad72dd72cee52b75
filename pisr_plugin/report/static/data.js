// The data of the sections by name, and what their scripts share.
const pisr = { data: JSON.parse(document.getElementById('data').textContent) };
