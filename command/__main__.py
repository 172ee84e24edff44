"""`python -m javisc` is the `javisc` command."""

from javisc.cli import main

if __name__ == "__main__":
    main()
