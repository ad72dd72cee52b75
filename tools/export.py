"""Write a network for other programs:  python tools/export.py fsrcnn_x2 -o exported --format onnx openvino"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
