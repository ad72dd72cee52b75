"""Compare the rows of a grid:  python tools/ablate.py -opt options/ablation/table1_x2.yml"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
