def write(*a):
    raise SystemExit("later")
