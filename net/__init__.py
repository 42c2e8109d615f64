"""One HTTP client: `client` makes a GET under a policy, and `addresses` knows which addresses are public.

Imports nothing else of this package but `packages`. Every URL of http and https is requested here; only the libraries
that read object stores open connections of their own.
"""
