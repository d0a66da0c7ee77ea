"""Second-order graph matching: graphs, affinities, solver, bound and its gradient."""
