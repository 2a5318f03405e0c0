//! Part of [`Core`]: decodes gossip, requests and responses of peers, dispatches them, and counts
//! misbehaviour.

use std::time::Duration;

use super::machine::Core;
use crate::{
    NodeId, Time,
    io::{Event, GossipId, Judgement, Output},
    sync::{self, Knowledge, NO_SESSION, RequestId, SyncRequest},
    wire::{self, Gossip, Received, Request, Response},
};

impl Core {
    pub(super) fn handle_gossip(&mut self, now: Time, id: GossipId, from: NodeId, bytes: &[u8]) {
        self.counters.gossip_received += 1;
        let judgement = match wire::decode::<Gossip>(bytes) {
            Ok(Received::Known(Gossip::Entries(entries))) => self.learn_entries(now, entries, from),
            Ok(Received::Known(Gossip::Evidence(evidence))) => self.learn_evidence_list(now, evidence, from),
            Ok(Received::Known(Gossip::Clash(clash))) => self.handle_clash(now, &clash, from),
            Ok(Received::Known(Gossip::Forget(forget))) => self.handle_forget_order(now, &forget, from),
            Ok(Received::Known(Gossip::UserEvent(event))) => {
                self.learn_user_event(now, &event, Duration::ZERO, from)
            }
            Ok(Received::Unknown) => {
                self.counters.unknown_kind += 1;
                let allowed = self.unknown_relay_limit.has_token(now, from);
                if allowed {
                    self.unknown_relay_limit.take_token(now, from);
                }
                if allowed { Judgement::Accept } else { Judgement::Ignore }
            }
            Err(_) => self.reject_malformed(now, from, "gossip"),
        };
        self.outputs.push_back(Output::Judge(id, judgement));
    }

    pub(super) fn handle_request(&mut self, now: Time, from: NodeId, request_id: RequestId, bytes: &[u8]) {
        let response = match wire::decode::<Request>(bytes) {
            Ok(Received::Known(Request::Push(pages))) => {
                if self.apply_pages(now, pages, from) {
                    self.schedule_comparisons(now, from);
                }
                Response::Done
            }
            Ok(Received::Known(Request::Clash(clash))) => {
                self.handle_clash(now, &clash, from);
                Response::Done
            }
            Ok(Received::Known(Request::Forget(orders))) => {
                for forget in orders {
                    let subject = forget.claim.subject;
                    let was_known = self.member_states.contains_key(&subject);
                    self.handle_forget_order(now, &forget, from);
                    // A new order is forwarded, because other neighbours may have missed it for the same
                    // reason.
                    if was_known && !self.member_states.contains_key(&subject) {
                        self.publish(&Gossip::Forget(forget));
                    }
                }
                Response::Done
            }
            Ok(Received::Known(Request::Unneeded)) => {
                self.respond(request_id, &Response::Done);
                if !self.connections.is_wanted(from) {
                    self.outputs.push_back(Output::Disconnect(from));
                }
                return;
            }
            Ok(Received::Known(Request::UserEvents { within_ms, known, is_first })) => {
                self.answer_user_events(now, from, within_ms, (&known, is_first))
            }
            Ok(Received::Known(request)) => {
                let known = Knowledge { state: &self.state, liveness: &self.liveness };
                sync::answer(known, &request).unwrap_or(Response::Done)
            }
            Ok(Received::Unknown) => {
                self.counters.unknown_kind += 1;
                Response::Done
            }
            Err(_) => {
                self.reject_malformed(now, from, "request");
                Response::Done
            }
        };
        self.respond(request_id, &response);
    }

    /// Schedules comparisons with the other neighbours, after anti-entropy brought news. They wait, because
    /// gossip may bring the same news a little later.
    pub(super) fn schedule_comparisons(&mut self, now: Time, from: NodeId) {
        let at = now + self.patience.stretch(now, sync::SETTLE);
        self.sync.schedule_others(at, from, self.connections.connected());
    }

    pub(super) fn respond(&mut self, request_id: RequestId, response: &Response) {
        self.outputs.push_back(Output::Respond(request_id, wire::encode(response)));
    }

    pub(super) fn send_request(&mut self, ask: SyncRequest) {
        self.outputs.push_back(Output::Request(ask.peer, ask.request_id, wire::encode(&ask.request)));
    }

    pub(super) fn handle_response(
        &mut self,
        now: Time,
        from: NodeId,
        request_id: RequestId,
        bytes: Option<Vec<u8>>,
    ) {
        if request_id == NO_SESSION
            && let Some(bytes) = bytes
        {
            return self.handle_user_events(now, from, &bytes);
        }
        if !self.sync.expects(from, request_id) {
            return;
        }
        let response = match bytes.as_deref().map(wire::decode::<Response>) {
            Some(Ok(Received::Known(response))) => response,
            Some(Err(_)) => {
                self.reject_malformed(now, from, "response");
                return self.sync.fail_session(from, request_id);
            }
            Some(Ok(Received::Unknown)) | None => return self.sync.fail_session(from, request_id),
        };
        if let Response::Pages { pages, .. } = &response
            && self.apply_pages(now, pages.clone(), from)
        {
            self.schedule_comparisons(now, from);
        }
        let known = Knowledge { state: &self.state, liveness: &self.liveness };
        if let Some(request) = self.sync.handle_response(now, from, response, known) {
            self.send_request(request);
        } else {
            self.compare_user_events(now, from);
        }
        for id in std::mem::take(&mut self.sync.forgotten) {
            self.forget(id);
        }
    }

    /// Counts a malformed message. A neighbour that keeps sending them is disconnected.
    pub(super) fn reject_malformed(&mut self, now: Time, from: NodeId, what: &'static str) -> Judgement {
        self.counters.malformed += 1;
        self.record_misbehaviour(now, from, what);
        Judgement::Reject
    }

    pub(super) fn record_misbehaviour(&mut self, now: Time, from: NodeId, what: &'static str) {
        self.push_event(Event::Misbehaved(from, what));
        if self.misbehaviour_limit.has_token(now, from) {
            self.misbehaviour_limit.take_token(now, from);
        } else {
            self.outputs.push_back(Output::Disconnect(from));
        }
    }
}
