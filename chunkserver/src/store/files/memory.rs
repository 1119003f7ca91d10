//! Files in memory that can lose power: what was not synced is then lost or torn, as a seed decides.
