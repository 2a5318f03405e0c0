//! Limits on network traffic: CIDR ranges, the policy for outgoing connections, and each host's share of a
//! limit.

pub(crate) mod address_policy;
pub(crate) mod cidr;
pub(crate) mod shares;

pub use address_policy::{AddressPolicy, Forbidden, InstanceAddress, MemberAddresses, check_ip};
pub use cidr::Cidr;
pub use shares::{
    ActiveRequest, Activity, Exempt, Holder, HostKey, RequestShare, Share, ShareRefusal, Shares, admit,
};
