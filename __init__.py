"""resnext_hub: the root of the repository is the package. Imports nothing: tools meet this file under other names."""
