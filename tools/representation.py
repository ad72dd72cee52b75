"""Show which degradations networks tell apart:  python tools/representation.py RUN [RUN ...] -o representation.png"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
