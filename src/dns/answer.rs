//! One message in, one message out: a pure function of the bytes, the zone and what the source says.

use hickory_proto::op::{
    Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::{NS, SOA};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

use crate::records::{addresses, endpoints, of_one, ports};
use crate::zone::{Asked, Part, Role, Zone, label_of};
use crate::{Known, Source};

/// Longest answer over UDP: it passes every usual path in one piece, and whoever asks under a false
/// address has little sent there. The rest is had over TCP.
pub const MAX_UDP_ANSWER: u16 = 1232;
/// What those take at least who say nothing (RFC 1035).
const MIN_UDP_ANSWER: u16 = 512;
/// The length over TCP has 16 bits.
const MAX_TCP_ANSWER: u16 = u16::MAX;
/// Types that are questions only, and what those who ask them want is not given: transfers, ANY.
const FIRST_META: u16 = 128;
const LAST_META: u16 = 255;

// How a secondary would follow the zone: nobody does, since transfers are refused.
const REFRESH_S: i32 = 60;
const RETRY_S: i32 = 10;
const EXPIRE_S: i32 = 3_600;

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There were records.
    Answered,
    /// The name is there, the records are not: nobody takes writes, for instance.
    NoData,
    /// There is no such name.
    NoName,
    /// This node can say nothing; another one may (SERVFAIL).
    NotHere,
    /// Another zone or class, a transfer, or ANY.
    Refused,
    /// No question, several, or bytes that are no message.
    Malformed,
    /// An operation other than QUERY.
    NotImplemented,
    /// A version of EDNS that nobody has yet.
    BadVersion,
    /// Not even a header, or itself an answer: nothing is said.
    Dropped,
}

impl Outcome {
    fn code(self) -> ResponseCode {
        match self {
            Self::Answered | Self::NoData | Self::Dropped => ResponseCode::NoError,
            Self::NoName => ResponseCode::NXDomain,
            Self::NotHere => ResponseCode::ServFail,
            Self::Refused => ResponseCode::Refused,
            Self::Malformed => ResponseCode::FormErr,
            Self::NotImplemented => ResponseCode::NotImp,
            Self::BadVersion => ResponseCode::BADVERS,
        }
    }
}

/// The answer to a message, where it gets one, and what became of it.
pub fn answer<S: Source>(
    zone: &Zone,
    source: &S,
    message: &[u8],
    over: Over,
) -> (Option<Vec<u8>>, Outcome) {
    // The header first: of what has another operation nothing more need be understood.
    let Ok(header) = Header::read(&mut BinDecoder::new(message)) else {
        return (None, Outcome::Dropped);
    };
    if header.message_type == MessageType::Response {
        return (None, Outcome::Dropped);
    }
    let mut reply = reply_to(&header);
    if header.op_code != OpCode::Query {
        return end(reply, Outcome::NotImplemented, MIN_UDP_ANSWER);
    }
    // Counted here, too: the decoder makes room for as many questions as are promised.
    if header.counts.queries != 1 {
        return end(reply, Outcome::Malformed, MIN_UDP_ANSWER);
    }
    let Ok(message) = Message::from_vec(message) else {
        return end(reply, Outcome::Malformed, MIN_UDP_ANSWER);
    };
    let [question] = &message.queries[..] else {
        return end(reply, Outcome::Malformed, MIN_UDP_ANSWER);
    };
    reply.add_query(question.clone());
    let limit = match over {
        Over::Udp => message.max_payload().clamp(MIN_UDP_ANSWER, MAX_UDP_ANSWER),
        Over::Tcp => MAX_TCP_ANSWER,
    };
    if let Some(asked) = &message.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_ANSWER).set_dnssec_ok(asked.flags().dnssec_ok);
        reply.set_edns(edns);
        if asked.version() > 0 {
            return end(reply, Outcome::BadVersion, limit);
        }
    }
    let outcome = fill(zone, source, question, &mut reply);
    end(reply, outcome, limit)
}

fn reply_to(header: &Header) -> Message {
    let mut reply = Message::response(header.id, header.op_code);
    reply.metadata = Metadata::response_from_request(&header.metadata);
    // RFC 4035 3.1.6: those who have the authority clear it.
    reply.metadata.checking_disabled = false;
    reply
}

/// The bytes of `reply`. What only saves another question goes first; what is too long even so is
/// asked again over TCP.
fn end(mut reply: Message, outcome: Outcome, limit: u16) -> (Option<Vec<u8>>, Outcome) {
    reply.metadata.response_code = outcome.code();
    let fits = |bytes: &Vec<u8>| bytes.len() <= usize::from(limit);
    let mut bytes = reply.to_vec();
    if !bytes.as_ref().is_ok_and(fits) {
        reply.additionals.clear();
        bytes = reply.to_vec();
    }
    if !bytes.as_ref().is_ok_and(fits) {
        bytes = reply.truncate().to_vec();
    }
    match bytes {
        Ok(bytes) => (Some(bytes), outcome),
        Err(_) => (None, Outcome::Dropped),
    }
}

/// Fills in what `question` asks for.
fn fill<S: Source>(zone: &Zone, source: &S, question: &Query, reply: &mut Message) -> Outcome {
    let wanted = question.query_type();
    let is_meta = (FIRST_META..=LAST_META).contains(&u16::from(wanted));
    if question.query_class() != DNSClass::IN || is_meta || !zone.holds(question.name()) {
        return Outcome::Refused;
    }
    if wanted == RecordType::OPT {
        return Outcome::Malformed;
    }
    let found = look(zone, source, question, reply.id, wanted);
    let outcome = match &found {
        Found::Rows { answers, .. } if answers.is_empty() => Outcome::NoData,
        Found::Rows { .. } => Outcome::Answered,
        Found::NoName => Outcome::NoName,
        Found::NotHere => return Outcome::NotHere,
    };
    reply.metadata.authoritative = true;
    match found {
        Found::Rows { answers, more } if outcome == Outcome::Answered => {
            reply.answers = answers;
            reply.additionals = more;
        }
        // It bounds how long "no" may be kept (RFC 2308).
        _ => reply.authorities = vec![soa(zone, source)],
    }
    outcome
}

enum Found {
    /// The name is there, with these records of the type that was asked for.
    Rows {
        answers: Vec<Record>,
        more: Vec<Record>,
    },
    NoName,
    NotHere,
}

impl Found {
    const NO_DATA: Self = Self::Rows { answers: Vec::new(), more: Vec::new() };

    fn answers(answers: Vec<Record>) -> Self {
        Self::Rows { answers, more: Vec::new() }
    }
}

fn look<S: Source>(
    zone: &Zone,
    source: &S,
    question: &Query,
    turn: u16,
    wanted: RecordType,
) -> Found {
    let name = question.name();
    let (service, part) = match zone.asked(name) {
        Asked::Apex => return apex(zone, source, wanted),
        Asked::Server => return server(zone, wanted),
        Asked::Nothing => return Found::NoName,
        Asked::Of { service, part } => (service, part),
    };
    let routes = match source.find(&service) {
        Known::Routes(routes) => routes,
        Known::Nothing => return Found::NoName,
        Known::NotHere => return Found::NotHere,
    };
    // Another server may know.
    let is_reads = matches!(part, Part::Role(Role::Replicas) | Part::Ports(Role::Replicas));
    if is_reads && routes.reads_unknown {
        return Found::NotHere;
    }
    match part {
        Part::Between => Found::NO_DATA,
        Part::Role(role) => {
            let tiers = endpoints(&routes, role, &source.place(), turn);
            Found::answers(addresses(zone, name, wanted, &tiers))
        }
        Part::Ports(_) if wanted != RecordType::SRV => Found::NO_DATA,
        Part::Ports(role) => {
            let tiers = endpoints(&routes, role, &source.place(), turn);
            let (answers, more) = ports(zone, name, &routes, &tiers);
            Found::Rows { answers, more }
        }
        Part::Instance(instance) => {
            let is_it = |own: &str| label_of(own).is_some_and(|own| own == instance);
            match routes.all.iter().find(|one| is_it(one.instance.as_str())) {
                Some(one) => Found::answers(of_one(zone, name, wanted, one)),
                None => Found::NoName,
            }
        }
        Part::Unknown => Found::NoName,
    }
}

fn apex<S: Source>(zone: &Zone, source: &S, wanted: RecordType) -> Found {
    match wanted {
        RecordType::SOA => Found::answers(vec![soa(zone, source)]),
        RecordType::NS => {
            let data = |name: &_| RData::NS(NS(Clone::clone(name)));
            let record = |data| Record::from_rdata(zone.origin.clone(), zone.ttl, data);
            let answers = zone.servers.iter().map(data).map(record).collect();
            Found::Rows { answers, more: own(zone) }
        }
        _ => Found::NO_DATA,
    }
}

fn server(zone: &Zone, wanted: RecordType) -> Found {
    let mut own = own(zone);
    own.retain(|record| record.record_type() == wanted);
    Found::answers(own)
}

/// Where this server is, if anybody may know.
fn own(zone: &Zone) -> Vec<Record> {
    let name = zone.servers.first();
    let own = zone.own.zip(name);
    own.map(|(ip, name)| Record::from_rdata(name.clone(), zone.ttl, RData::from(ip)))
        .into_iter()
        .collect()
}

fn soa<S: Source>(zone: &Zone, source: &S) -> Record {
    let first = zone.servers.first().unwrap_or(&zone.origin).clone();
    let person = zone.origin.prepend_label("hostmaster").unwrap_or_else(|_| zone.origin.clone());
    let serial = source.serial();
    let data = SOA::new(first, person, serial, REFRESH_S, RETRY_S, EXPIRE_S, zone.ttl);
    Record::from_rdata(zone.origin.clone(), zone.ttl, RData::SOA(data))
}
