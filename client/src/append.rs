//! Record append (GFS §3.3).
