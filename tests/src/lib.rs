//! The lab: real nodes in network namespaces, and what can go wrong with them.
