package cvms

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"
)

// The wire types of protobuf that are read. Groups, which proto3 has no more, are refused.
const (
	wireVarint = 0
	wire64     = 1
	wireBytes  = 2
	wire32     = 5
)

// maxNumber is the highest number that a field can have.
const maxNumber = 1<<29 - 1

// A field is one field of a message as it stands on the wire.
type field struct {
	number int
	wire   int
	varint uint64 // of wireVarint
	bytes  []byte // of wireBytes: a part of the message
}

// scan gives take each field of a message, in its order; take passes over those that it does not know, whatever is in them. What is read
// means the same to protobuf, which refuses less.
func scan(b []byte, take func(field) error) error {
	for len(b) > 0 {
		key, n := binary.Uvarint(b)
		if n <= 0 || key>>3 < 1 || key>>3 > maxNumber {
			return errors.New("no field begins here")
		}
		b = b[n:]
		f := field{number: int(key >> 3), wire: int(key & 7)}
		size := uint64(0)
		switch f.wire {
		case wireVarint:
			if f.varint, n = binary.Uvarint(b); n <= 0 {
				return fmt.Errorf("field %d: no varint", f.number)
			}
			size = uint64(n)
		case wire64:
			size = 8
		case wire32:
			size = 4
		case wireBytes:
			if size, n = binary.Uvarint(b); n <= 0 {
				return fmt.Errorf("field %d: no length", f.number)
			}
			b = b[n:]
		default:
			return fmt.Errorf("field %d: wire type %d", f.number, f.wire)
		}
		if size > uint64(len(b)) {
			return fmt.Errorf("field %d: %d bytes, and the message has %d more", f.number, size, len(b))
		}
		if f.wire == wireBytes {
			f.bytes = b[:size]
		}
		b = b[size:]
		if err := take(f); err != nil {
			return err
		}
	}
	return nil
}

func (f field) want(wire int, name string) error {
	if f.wire != wire {
		return fmt.Errorf("%s: wire type %d, want %d", name, f.wire, wire)
	}
	return nil
}

// text reads a string, which in proto3 is UTF-8.
func (f field) text(name string, to *string) error {
	if err := f.want(wireBytes, name); err != nil {
		return err
	}
	if !utf8.Valid(f.bytes) {
		return fmt.Errorf("%s: is no UTF-8", name)
	}
	*to = string(f.bytes)
	return nil
}

// blob reads bytes, as a copy.
func (f field) blob(name string, to *[]byte) error {
	*to = slices.Clone(f.bytes)
	return f.want(wireBytes, name)
}

func (f field) flag(name string, to *bool) error {
	*to = f.varint != 0
	return f.want(wireVarint, name)
}

// message reads a message inside the message. One that is there twice is read into the same place, as protobuf has it.
func (f field) message(name string, take func(field) error) error {
	if err := f.want(wireBytes, name); err != nil {
		return err
	}
	if err := scan(f.bytes, take); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// appendText writes a string, or nothing for the empty one, which is the same in proto3.
func appendText(b []byte, number int, s string) []byte {
	if s == "" {
		return b
	}
	return appendMessage(b, number, []byte(s))
}

// appendMessage writes bytes or a message, also an empty one.
func appendMessage(b []byte, number int, m []byte) []byte {
	b = binary.AppendUvarint(b, uint64(number)<<3|wireBytes)
	b = binary.AppendUvarint(b, uint64(len(m)))
	return append(b, m...)
}

// appendVarint writes an integer that is not negative, or nothing for 0.
func appendVarint(b []byte, number int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(number)<<3|wireVarint), v)
}
