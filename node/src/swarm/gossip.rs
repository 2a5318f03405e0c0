//! gossipsub: its configuration, and the filter of subscriptions.

use std::time::Duration;

use hearsay_protocol::wire::MESSAGE_BYTES_MAX;
use libp2p::gossipsub::{
    self, IdentTopic, MaxCountSubscriptionFilter, MessageAuthenticity, ValidationMode,
    WhitelistSubscriptionFilter,
};

use super::error::SwarmError;

/// Maximum number of gossip messages queued for one neighbour. Further ones are dropped and counted;
/// anti-entropy delivers their entries.
const NEIGHBOUR_QUEUE_MAX: usize = 1024;
/// Longest wait of a queued gossip message. With gossipsub's default of one second, a busy machine would drop
/// messages on all its connections.
const NEIGHBOUR_LATE_MAX: Duration = Duration::from_secs(10);
/// Maximum number of topics in one subscription message. A node subscribes to one.
const SUBSCRIPTIONS_MAX: usize = 8;

/// Filter of subscriptions: only the cluster's own topic. Without it gossipsub would store every topic that a
/// peer names.
pub type Topics = MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>;
/// gossipsub with that filter.
pub type Gossip = gossipsub::Behaviour<gossipsub::IdentityTransform, Topics>;

/// Builds gossipsub, subscribed to the cluster's topic.
///
/// # Errors
/// gossipsub refused its configuration.
pub(super) fn build(topic: &IdentTopic) -> Result<Gossip, SwarmError> {
    let setup = SwarmError::setup("gossip");
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(|message| gossipsub::MessageId::new(&blake3::hash(&message.data).as_bytes()[..16]))
        .max_transmit_size(MESSAGE_BYTES_MAX + 1024)
        .max_control_message_size(MESSAGE_BYTES_MAX)
        .heartbeat_interval(Duration::from_secs(1))
        .heartbeat_initial_delay(Duration::from_millis(100))
        // A node normally has six or seven connections, so the mesh covers nearly all of them. Relaying is
        // still limited to the mesh: while many nodes start at once, they have many more connections, and
        // relaying over all of them would cost four times as much. (`flood_publish` concerns only a node's
        // own messages.)
        .mesh_outbound_min(0)
        .mesh_n_low(6)
        .mesh_n(8)
        .mesh_n_high(12)
        .prune_backoff(Duration::from_secs(10))
        // Once a second, peers outside the mesh receive lists of message ids. Two peers are enough: such
        // connections are short-lived, and anti-entropy repairs gaps as well.
        .gossip_lazy(2)
        .gossip_factor(0.0)
        // Bounds on the messages queued for a neighbour that is slow or gone.
        .connection_handler_queue_len(NEIGHBOUR_QUEUE_MAX)
        .publish_queue_duration(NEIGHBOUR_LATE_MAX)
        .forward_queue_duration(NEIGHBOUR_LATE_MAX)
        .flood_publish(true)
        .allow_self_origin(false)
        .build()
        .map_err(|e| setup(&e))?;
    let topics = Topics {
        filter: WhitelistSubscriptionFilter([topic.hash()].into()),
        max_subscribed_topics: 1,
        max_subscriptions_per_request: SUBSCRIPTIONS_MAX,
    };
    let mut gossip = Gossip::new_with_subscription_filter(MessageAuthenticity::Anonymous, config, topics)
        .map_err(|e| setup(&e))?;
    gossip.subscribe(topic).map_err(|e| setup(&e))?;
    Ok(gossip)
}
