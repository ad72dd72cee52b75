"""Make a report of an evaluation:  python tools/report.py results/NAME"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
