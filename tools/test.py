"""Test a recipe:  python tools/test.py -opt options/pisr_rfdn_x4.yml"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
