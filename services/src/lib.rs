//! The plug-ins, and the two traits between a plug-in and its node.
