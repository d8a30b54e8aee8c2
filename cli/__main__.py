"""`python -m cli`: the same as `orders-backup`."""

from cli.app import main

if __name__ == "__main__":
    main()
