// Owns the precompiled headers of the library: a target without a source has none.
