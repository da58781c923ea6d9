import sys

from vitbackbone.cli import main

sys.exit(main())
