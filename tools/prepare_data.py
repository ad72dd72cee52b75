"""Prepare HR/LR image pairs:  python tools/prepare_data.py build PHOTOS -o datasets/NAME | verify | demo"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
