def refuse_what_cannot_fit(request): pass
