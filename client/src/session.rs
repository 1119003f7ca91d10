//! The client's session at the masters: names its mutations, so that a repeat is harmless (trap T30).
