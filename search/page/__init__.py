"""The page: search and comparison in a browser, on this machine only and without the internet."""
