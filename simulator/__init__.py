"""A simulated Allegro: one HTTP server that behaves as Allegro's order API and OAuth are known to behave.

Run it as ``python -m simulator``; `simulator/README.md` lists the flags and the control endpoints under ``/_sim/``.

How it is built. History is not stored: every order, its life and its events follow from (seed, seller, index) by pure
functions (`dice`, `identity`, `catalogue`, `timeline`, `orders`, `history`), so millions of orders cost nothing until
somebody asks. Only what happens while it runs is kept (`world`): new orders, steps, journal entries, consents, tokens.
Two starts with the same seed and the same ``--epoch`` have identical histories. `journal` and `listing` answer the
reads, `oauth` the tokens, `limits` the 429s, `faults` everything that goes wrong on purpose, `ledger` tells the truth
to compare with. `wire` is the HTTP server; `api`, `auth` and `control` are the edges.

References in docstrings: "#4870" is an issue of allegro/allegro-api on GitHub, "section 3" the chapter of
allegro-api.md, the collected facts on how the real service behaves.
"""
