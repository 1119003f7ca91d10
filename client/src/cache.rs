//! The metadata cache: where chunks are, and who may mutate them (GFS §2.7.1).
