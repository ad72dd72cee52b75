"""Upscale photos:  python tools/upscale.py photo.jpg -opt options/pisr_fsrcnn_x2.yml -o larger"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
