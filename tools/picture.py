"""Draw what a recipe's student does:  python tools/picture.py -opt options/demo/pisr_fsrcnn_x2.yml"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
