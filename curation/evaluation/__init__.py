"""What a kept set is worth: pure functions on arrays. No Ray, no files, no clock, no global random state.

Cheap measures train nothing: `coverage`, `balance`, `diversity`, `frechet`. Two
dear ones decide: `coreset` (the kept samples' own labels teach) and `pretraining`
(no labels; frozen features are probed). `statistics` says what their differences
over seeds allow to be said.
"""
