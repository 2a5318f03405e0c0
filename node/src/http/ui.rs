//! The node's own HTML pages (cluster, services, one service), their forms and their live updates. They work
//! without scripts.

pub(crate) mod actions;
pub(crate) mod cluster;
pub(crate) mod dependency_graph;
pub(crate) mod live;
pub(crate) mod notice;
pub(crate) mod parts;
pub(crate) mod service;
pub(crate) mod services;
pub(crate) mod topology;
pub(crate) mod uptime;
