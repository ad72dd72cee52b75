"""Show how strongly each loss pulls:  python tools/gradients.py -opt options/pisr_fsrcnn_x2.yml --stage student"""

import sys

from pisr_command import main

if __name__ == '__main__':
    sys.exit(main())
