def rewrite():
    pass
