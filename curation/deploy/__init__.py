"""Jobs on other machines: over the Ray Jobs API (``submission``), and on Kubernetes (``kubernetes``, ``launch``)."""
