from hypothesis import settings

# The same examples in every run: a failure on one machine is a failure on all. Look for new ones with
# `pytest --hypothesis-profile=default`.
settings.register_profile("offramp", deadline=None, derandomize=True)
settings.load_profile("offramp")
