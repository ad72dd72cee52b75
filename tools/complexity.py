"""Count parameters and Multi-Adds:  python tools/complexity.py -opt options/pisr_rfdn_x*.yml"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
