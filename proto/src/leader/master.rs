//! One master: a client of its service that says which cluster is meant.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::error::{Error, Result};
use crate::id::ClusterId;
use crate::pb::master_client::MasterClient;
use crate::size::MESSAGE_BYTES_MAX;

/// Metadata of a call to the Master service: the cluster that is meant, as text. A master of another one refuses with
/// [`Error::WrongCluster`]; without it whoever is asked answers.
pub const CLUSTER_KEY: &str = "gfs-cluster";
/// Metadata of a refusal: the log index of the state that it comes from, as decimal text.
pub const REV_KEY: &str = "gfs-rev";

/// The log index of the state in which this was refused; 0 if the refusal does not come from a state.
pub fn refused_at(status: &Status) -> u64 {
    let text = status.metadata().get(REV_KEY).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A client of the Master service at one master.
#[derive(Clone, Debug)]
pub struct Master(MasterClient<InterceptedService<Channel, Meant>>);

impl Master {
    /// The master at the end of this channel, whichever cluster it belongs to.
    pub fn new(channel: Channel) -> Self {
        Self::of(channel, Meant::default())
    }

    pub(super) fn of(channel: Channel, meant: Meant) -> Self {
        let master = MasterClient::with_interceptor(channel, meant)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self(master)
    }
}
impl Deref for Master {
    type Target = MasterClient<InterceptedService<Channel, Meant>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
impl DerefMut for Master {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// The cluster that calls are meant for, once it is known; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Meant(Arc<OnceLock<ClusterId>>);

impl Meant {
    /// Takes note of the cluster; the first one stays.
    ///
    /// # Errors
    /// [`Error::WrongCluster`] if another one is meant.
    pub(super) fn settle(&self, cluster: ClusterId) -> Result<()> {
        let ours = *self.0.get_or_init(|| cluster);
        if ours == cluster {
            return Ok(());
        }
        Err(Error::WrongCluster { ours: cluster.to_string(), theirs: ours.to_string() })
    }

    /// Checks what a master says of itself, if a cluster is meant.
    ///
    /// # Errors
    /// [`Error::WrongCluster`] if it belongs to another one.
    pub(super) fn check(&self, cluster: &str) -> Result<()> {
        match (self.0.get(), ClusterId::from_hex(cluster)) {
            (Some(_), Some(cluster)) => self.settle(cluster),
            (Some(_), None) | (None, _) => Ok(()),
        }
    }
}
impl Interceptor for Meant {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(cluster) = self.0.get() {
            let value = MetadataValue::try_from(cluster.to_string()).map_err(Error::internal)?;
            request.metadata_mut().insert(CLUSTER_KEY, value);
        }
        Ok(request)
    }
}
