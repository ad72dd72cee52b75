"""List networks, losses, ..., taps:  python tools/list.py networks [NAME] | taps --type EDSR | schema -o FILE"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
