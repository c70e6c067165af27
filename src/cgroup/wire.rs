//! Messages of D-Bus as bytes: what sbx sends, and what it reads of the answers.
//!
//! Pure. What comes in is of unknown origin: it is checked against the lengths it claims, never indexed, and whatever
//! it holds, reading it ends with a message or with a reason.

/// What is wrong with bytes that are no message.
pub type Parsed<T> = Result<T, &'static str>;

/// No answer that sbx waits for comes near this; D-Bus itself would allow 128 MiB.
pub const MOST: usize = 1 << 20;

const FIXED: usize = 16;
const CUT: &str = "a message is shorter than it says";
const BAD_TEXT: &str = "a text in a message is damaged";

// --- Out ---

/// Bytes with the alignment of D-Bus, little-endian.
#[derive(Clone, Debug, Default)]
pub struct Body(Vec<u8>);

impl Body {
    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    /// `y`
    pub fn byte(&mut self, value: u8) -> &mut Body {
        self.0.push(value);
        self
    }

    /// `u`
    pub fn u32(&mut self, value: u32) -> &mut Body {
        self.align(4);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// `b`
    pub fn bool(&mut self, value: bool) -> &mut Body {
        self.u32(value.into())
    }

    /// `i`
    pub fn i32(&mut self, value: i32) -> &mut Body {
        self.u32(value as u32)
    }

    /// `t`
    pub fn u64(&mut self, value: u64) -> &mut Body {
        self.align(8);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// `s` or `o`. D-Bus has no NUL in a text; one ends it.
    pub fn text(&mut self, value: &str) -> &mut Body {
        let value = value.split('\0').next().unwrap_or_default();
        self.u32(value.len() as u32);
        self.0.extend(value.as_bytes());
        self.byte(0)
    }

    /// `g`
    pub fn signature(&mut self, value: &str) -> &mut Body {
        self.byte(value.len() as u8);
        self.0.extend(value.as_bytes());
        self.byte(0)
    }

    /// An array whose elements are aligned to `to`.
    pub fn array(&mut self, to: usize, fill: impl FnOnce(&mut Body)) -> &mut Body {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(to);
        let start = self.0.len();
        fill(self);
        let length = (self.0.len() - start) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
        self
    }

    /// The start of a structure or of an entry of a dictionary.
    pub fn entry(&mut self) -> &mut Body {
        self.align(8);
        self
    }
}

/// Whom a call is for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The name on the bus; none where no bus is between.
    pub name: Option<&'a str>,
    /// The object.
    pub path: &'a str,
    /// The interface that has the method.
    pub interface: &'a str,
}

/// The bytes of a method call.
pub fn call(to: Target<'_>, method: &str, serial: u32, signature: &str, body: &Body) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    // No name is started for us: a manager that is not there is to be told as that.
    const NO_AUTO_START: u8 = 2;
    let mut out = Body::default();
    out.byte(b'l').byte(METHOD_CALL).byte(NO_AUTO_START).byte(1).u32(body.0.len() as u32).u32(serial);
    out.array(8, |fields| {
        let mut field = |code: u8, kind: &str, value: &str| {
            fields.entry().byte(code).signature(kind).text(value);
        };
        field(1, "o", to.path);
        field(2, "s", to.interface);
        field(3, "s", method);
        to.name.iter().for_each(|name| field(6, "s", name));
        if !signature.is_empty() {
            fields.entry().byte(8).signature("g").signature(signature);
        }
    });
    out.align(8);
    out.0.extend(&body.0);
    out.0
}

// --- In ---

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Somebody calls us.
    Call,
    /// The answer to a call.
    Return,
    /// The refusal of a call.
    Error,
    /// Told to whoever listens.
    Signal,
    /// A kind that is to be ignored.
    Other,
}

/// A message that came.
#[derive(Clone, Debug)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// The number of the call that it answers.
    pub reply_to: Option<u32>,
    /// The interface of a signal.
    pub interface: String,
    /// The name of a signal.
    pub member: String,
    /// The name of an error.
    pub error: String,
    /// What the body holds.
    pub signature: String,
    body: Vec<u8>,
    big: bool,
}

/// How many bytes the message at the start of `bytes` has; none while too few are there to tell.
pub fn length(bytes: &[u8]) -> Parsed<Option<usize>> {
    let big = match bytes.first() {
        None | Some(b'l') => false,
        Some(b'B') => true,
        Some(_) => return Err("the byte order of a message is unknown"),
    };
    let mut reader = Reader { bytes, at: 4, big };
    let (Ok(body), Ok(_serial), Ok(fields)) = (reader.u32(), reader.u32(), reader.u32()) else { return Ok(None) };
    // Neither sum can overflow: each part was compared first.
    if body as usize > MOST || fields as usize > MOST {
        return Err("a message is too long");
    }
    match (FIXED + fields as usize).next_multiple_of(8) + body as usize {
        length if length > MOST => Err("a message is too long"),
        length => Ok(Some(length)),
    }
}

impl Message {
    /// Reads one whole message, of the length that [`length`] told.
    pub fn parse(bytes: &[u8]) -> Parsed<Message> {
        let length = length(bytes)?.ok_or(CUT)?;
        let bytes = bytes.get(..length).ok_or(CUT)?;
        let kind = match bytes.get(1) {
            Some(1) => Kind::Call,
            Some(2) => Kind::Return,
            Some(3) => Kind::Error,
            Some(4) => Kind::Signal,
            _ => Kind::Other,
        };
        if bytes.get(3) != Some(&1) {
            return Err("the version of the protocol is unknown");
        }
        let mut reader = Reader { bytes, at: 12, big: bytes[0] == b'B' };
        let mut message = Message {
            kind,
            reply_to: None,
            interface: String::new(),
            member: String::new(),
            error: String::new(),
            signature: String::new(),
            body: Vec::new(),
            big: reader.big,
        };
        let end = FIXED + reader.u32()? as usize;
        while reader.at < end {
            message.field(&mut reader)?;
        }
        if reader.at != end {
            return Err("the fields of a message are damaged");
        }
        message.body = bytes.get(end.next_multiple_of(8)..).ok_or(CUT)?.to_vec();
        Ok(message)
    }

    /// One field of the header. A code that is unknown is to be ignored.
    fn field(&mut self, reader: &mut Reader<'_>) -> Parsed<()> {
        reader.align(8)?;
        let code = reader.byte()?;
        match (code, reader.signature()?) {
            (2, "s") => self.interface = reader.text()?.into(),
            (3, "s") => self.member = reader.text()?.into(),
            (4, "s") => self.error = reader.text()?.into(),
            (5, "u") => self.reply_to = Some(reader.u32()?),
            (8, "g") => self.signature = reader.signature()?.into(),
            (_, "s" | "o") => reader.text().map(drop)?,
            (_, "g") => reader.signature().map(drop)?,
            (_, "u" | "i" | "b" | "h") => reader.u32().map(drop)?,
            (_, "y") => reader.byte().map(drop)?,
            (_, "t" | "x" | "d") => reader.align(8).and_then(|()| reader.take(8).map(drop))?,
            _ => return Err("a field of a message is of an unknown type"),
        }
        Ok(())
    }

    /// What it carries, to be read as its signature says.
    pub fn body(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0, big: self.big }
    }
}

/// Reads values one after the other.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl<'a> Reader<'a> {
    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, count: usize) -> Parsed<&'a [u8]> {
        let end = self.at.checked_add(count).ok_or(CUT)?;
        let taken = self.bytes.get(self.at..end).ok_or(CUT)?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Parsed<()> {
        self.take(self.at.next_multiple_of(to) - self.at).map(drop)
    }

    /// `y`
    pub fn byte(&mut self) -> Parsed<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// `u`
    pub fn u32(&mut self) -> Parsed<u32> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().map_err(|_| CUT)?;
        Ok(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// `s` or `o`
    pub fn text(&mut self) -> Parsed<&'a str> {
        let length = self.u32()? as usize;
        self.ended(length)
    }

    /// `g`
    pub fn signature(&mut self) -> Parsed<&'a str> {
        let length = self.byte()? as usize;
        self.ended(length)
    }

    fn ended(&mut self, length: usize) -> Parsed<&'a str> {
        let text = self.take(length)?;
        if self.byte()? != 0 || text.contains(&0) {
            return Err(BAD_TEXT);
        }
        std::str::from_utf8(text).map_err(|_| BAD_TEXT)
    }
}

/// An object's name in a path: systemd writes every byte but letters and digits as `_` and two hexadecimal digits.
pub fn path_of_unit(unit: &str) -> String {
    let first = "/org/freedesktop/systemd1/unit/".to_owned();
    unit.bytes().enumerate().fold(first, |path, (at, byte)| match byte {
        // A part of a path may begin with a digit, but systemd escapes it there.
        b'0'..=b'9' if at == 0 => format!("{path}_{byte:02x}"),
        _ if byte.is_ascii_alphanumeric() => path + char::from(byte).encode_utf8(&mut [0; 4]),
        _ => format!("{path}_{byte:02x}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TO: Target<'_> = Target { name: Some("a.b"), path: "/c", interface: "d.e" };

    fn sample() -> Vec<u8> {
        let mut body = Body::default();
        body.text("unit").byte(7).u32(9).array(8, |body| {
            body.entry().text("x").u64(5);
        });
        call(TO, "Go", 3, "syua(st)", &body)
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = sample();
        assert_eq!(length(&bytes), Ok(Some(bytes.len())));
        let message = Message::parse(&bytes).expect("a message");
        assert_eq!((message.kind, message.member.as_str(), message.interface.as_str()), (Kind::Call, "Go", "d.e"));
        assert_eq!(message.signature, "syua(st)");
        let mut body = message.body();
        assert_eq!((body.text(), body.byte(), body.u32(), body.u32()), (Ok("unit"), Ok(7), Ok(9), Ok(16)));
    }

    /// The bytes of the specification's example call, Hello, as dbus-daemon's own client sends them.
    #[test]
    fn a_call_has_the_bytes_of_other_clients() {
        let to = Target { name: None, path: "/", interface: "i.f" };
        let expected = b"l\x01\x02\x01\x00\x00\x00\x00\x01\x00\x00\x00\x2a\x00\x00\x00\
            \x01\x01o\x00\x01\x00\x00\x00/\x00\x00\x00\x00\x00\x00\x00\
            \x02\x01s\x00\x03\x00\x00\x00i.f\x00\x00\x00\x00\x00\
            \x03\x01s\x00\x01\x00\x00\x00M\x00\x00\x00\x00\x00\x00\x00";
        assert_eq!(call(to, "M", 1, "", &Body::default()), expected);
    }

    #[test]
    fn big_endian_is_read_too() {
        let bytes = b"B\x03\x01\x01\x00\x00\x00\x04\x00\x00\x00\x07\x00\x00\x00\x08\x05\x01u\x00\x00\x00\x00\x09\
            \x00\x00\x01\x00";
        let message = Message::parse(bytes).expect("a message");
        assert_eq!((message.kind, message.reply_to, message.body().u32()), (Kind::Error, Some(9), Ok(256)));
    }

    #[test]
    fn lengths_that_nobody_means_are_refused() {
        let mut bytes = sample();
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(length(&bytes).is_err());
        let mut bytes = sample();
        bytes[12..16].copy_from_slice(&(MOST as u32 - 1).to_le_bytes());
        assert!(length(&bytes).is_err());
        assert_eq!(length(b"l"), Ok(None));
        assert!(length(b"OK").is_err());
    }

    #[test]
    fn every_cut_of_a_message_is_seen() {
        let bytes = sample();
        (0..bytes.len()).for_each(|end| assert!(Message::parse(&bytes[..end]).is_err(), "{end}"));
    }

    #[test]
    fn units_have_paths() {
        assert_eq!(path_of_unit("sbx-a.1.scope"), "/org/freedesktop/systemd1/unit/sbx_2da_2e1_2escope");
        assert_eq!(path_of_unit("1"), "/org/freedesktop/systemd1/unit/_31");
    }

    fn read_all(message: &Message) {
        let mut body = message.body();
        while body.text().is_ok() || body.u32().is_ok() || body.signature().is_ok() || body.byte().is_ok() {}
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = length(&bytes);
            let _ = Message::parse(&bytes).map(|message| read_all(&message));
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0..112usize, with: u8, more in 0..112usize, value: u8) {
            let mut bytes = sample();
            let count = bytes.len();
            bytes[at % count] = with;
            bytes[more % count] = value;
            let _ = Message::parse(&bytes).map(|message| read_all(&message));
        }

        #[test]
        fn any_text_comes_back(text in "[^\0]{0,40}", number: u32) {
            let mut body = Body::default();
            body.text(&text).u32(number);
            let message = Message::parse(&call(TO, "M", 1, "su", &body)).expect("a message");
            let mut body = message.body();
            prop_assert_eq!((body.text(), body.u32()), (Ok(text.as_str()), Ok(number)));
        }
    }
}
