"""K-means over the catalog, scene references, hierarchy, and the assignment of every sample."""
