//! The chunkserver: chunk store, replicas, data plane.
