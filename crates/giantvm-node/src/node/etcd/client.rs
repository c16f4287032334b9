//! etcd's v3 API, as far as a cluster needs it, over its JSON gateway.
//!
//! The gateway writes 64-bit integers as text, leaves out what is zero, and has keys and values in
//! base64.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::membership::etcd::{Announcement, Present, Proposal, Record, View};

/// Longest answer, in bytes: 64 nodes with a reason each take a tenth of it.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A way to an etcd cluster: to one of its endpoints, and to the next if that fails.
#[derive(Clone)]
pub(super) struct Client {
    agent: ureq::Agent,
    endpoints: Vec<String>,
    current: usize,
    /// The etcd cluster that answered first.
    cluster_id: Option<String>,
    prefix: String,
}

/// In which term etcd answered: who leads changes only with the term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Term(u64);

/// What etcd made of a request to keep a lease.
pub(super) enum Renewal {
    Granted(Term),
    Ended,
}

impl Client {
    /// For the keys of `cluster`. An endpoint has `patience` for each answer.
    pub(super) fn new(endpoints: &[String], cluster: &str, patience: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(patience))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .build();
        Self {
            agent: config.into(),
            endpoints: endpoints.iter().map(|it| it.trim_end_matches('/').to_owned()).collect(),
            current: 0,
            cluster_id: None,
            prefix: format!("/giantvm/{cluster}/"),
        }
    }

    /// A new lease: its number, and how many seconds it lasts; at least `seconds`.
    pub(super) fn grant(&mut self, seconds: u64) -> Result<(u64, u64), String> {
        let (answer, _) = self.call("lease/grant", &json!({ "TTL": seconds.to_string() }))?;
        let (lease, granted) = (number(&answer["ID"]), number(&answer["TTL"]));
        if lease == 0 || granted < seconds {
            return Err(self.blame("it granted no lease"));
        }
        Ok((lease, granted))
    }

    pub(super) fn renew(&mut self, lease: u64) -> Result<Renewal, String> {
        let (answer, term) = self.call("lease/keepalive", &json!({ "ID": lease.to_string() }))?;
        let lasts = number(&answer["TTL"]);
        Ok(if lasts > 0 { Renewal::Granted(term) } else { Renewal::Ended })
    }

    /// Gives a lease back, and the keys under it.
    pub(super) fn revoke(&mut self, lease: u64) -> Result<(), String> {
        self.call("lease/revoke", &json!({ "ID": lease.to_string() })).map(drop)
    }

    /// All that etcd has of the cluster.
    pub(super) fn look(&mut self) -> Result<(View, Term), String> {
        let end = format!("{}0", &self.prefix[..self.prefix.len() - 1]); // '0' follows '/'
        let range = json!({ "key": encode(&self.prefix), "range_end": encode(&end) });
        let (answer, term) = self.call("kv/range", &range)?;
        let mut view = View::default();
        for entry in answer["kvs"].as_array().into_iter().flatten() {
            let (key, value) = (decode(&entry["key"]), decode(&entry["value"]));
            let Some(place) = key.strip_prefix(&self.prefix) else { continue };
            let wrong = |what: &dyn std::fmt::Display| {
                format!("etcd's key {key} is not as this version of giantvm writes it: {what}")
            };
            if place == "epoch" {
                view.revision = number(&entry["mod_revision"]);
                view.record = Some(Record::from_json(&value).map_err(|e| wrong(&e))?);
            } else if let Some(name) = place.strip_prefix("nodes/") {
                view.present.push(Present {
                    name: name.to_owned(),
                    lease: number(&entry["lease"]),
                    since: number(&entry["create_revision"]),
                    says: Announcement::from_json(&value).map_err(|e| wrong(&e))?,
                });
            }
        }
        Ok((view, term))
    }

    /// Puts a node's own key, if there is none of that name.
    pub(super) fn announce(
        &mut self,
        name: &str,
        lease: u64,
        says: &Announcement,
    ) -> Result<(), String> {
        let key = self.node_key(name);
        let free = json!({ "key": key, "target": "CREATE", "create_revision": "0" });
        let put =
            json!({ "key": key, "value": encode(&says.to_json()), "lease": lease.to_string() });
        self.transact(vec![free], &put)
    }

    /// Writes the epoch key, if everything is as `proposal` takes it to be.
    pub(super) fn propose(&mut self, proposal: &Proposal) -> Result<(), String> {
        let key = encode(&format!("{}epoch", self.prefix));
        let revision = proposal.revision.to_string();
        let mut compare = vec![json!({ "key": key, "target": "MOD", "mod_revision": revision })];
        for (nodes, result) in [(&proposal.present, "EQUAL"), (&proposal.absent, "NOT_EQUAL")] {
            compare.extend(nodes.iter().map(|(name, lease)| {
                let (key, lease) = (self.node_key(name), lease.to_string());
                json!({ "key": key, "target": "LEASE", "result": result, "lease": lease })
            }));
        }
        let put = json!({ "key": key, "value": encode(&proposal.record.to_json()) });
        self.transact(compare, &put)
    }

    fn transact(&mut self, compare: Vec<Value>, put: &Value) -> Result<(), String> {
        let body = json!({ "compare": compare, "success": [{ "request_put": put }] });
        self.call("kv/txn", &body).map(drop)
    }

    fn node_key(&self, name: &str) -> String {
        encode(&format!("{}nodes/{name}", self.prefix))
    }

    /// Asks the endpoints in turn, from the one that answered last. To ask again is safe: what
    /// changes anything compares first, or is the same the second time.
    fn call(&mut self, what: &str, body: &Value) -> Result<(Value, Term), String> {
        let mut failures = Vec::new();
        for _ in 0..self.endpoints.len() {
            match self.call_one(what, body) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failures.push(self.blame(&failure)),
            }
            self.current = (self.current + 1) % self.endpoints.len();
        }
        Err(failures.join("; "))
    }

    fn blame(&self, failure: &str) -> String {
        format!("{}: {failure}", self.endpoints[self.current])
    }

    fn call_one(&mut self, what: &str, body: &Value) -> Result<(Value, Term), String> {
        let url = format!("{}/v3/{what}", self.endpoints[self.current]);
        let request = self.agent.post(&url).content_type("application/json");
        let mut response = request.send(&body.to_string()).map_err(|e| e.to_string())?;
        let status = response.status();
        let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let text = text.map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        if let Some(message) = answer["error"].as_str().or(answer["error"]["message"].as_str()) {
            return Err(message.to_owned());
        }
        // What streams comes as one object with the answer in it.
        let answer = if answer["result"].is_object() { answer["result"].clone() } else { answer };
        let header = &answer["header"];
        let (Some(cluster), term @ 1..) =
            (header["cluster_id"].as_str(), number(&header["raft_term"]))
        else {
            return Err(format!("HTTP status {status}, and no answer of etcd's v3 API"));
        };
        if self.cluster_id.get_or_insert_with(|| cluster.to_owned()) != cluster {
            return Err("it belongs to another etcd cluster than the other endpoints".into());
        }
        Ok((answer, Term(term)))
    }
}

fn encode(text: &str) -> String {
    STANDARD.encode(text)
}

fn decode(value: &Value) -> String {
    let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}
