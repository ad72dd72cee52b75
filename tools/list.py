"""List recipes, networks, ..., taps:  python tools/list.py recipes | networks [NAME] | taps --type EDSR | schema"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
