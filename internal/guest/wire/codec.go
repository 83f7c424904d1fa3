package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

// MaxRepeated bounds every repeated field.
const MaxRepeated = 4096

// ErrMalformed says that bytes are not a message.
var ErrMalformed = errors.New("malformed message")

// Message is one of this package's structs. Each lists its fields once, for
// both directions; numbers never change their meaning.
type Message interface{ fields(*coder) }

// Append adds the encoding of m, in protobuf's wire format, to b.
func Append(b []byte, m Message) []byte {
	c := coder{out: b}
	m.fields(&c)
	return c.out
}

// Decode fills m from b. Unknown fields are skipped; strings must be UTF-8.
// Byte fields of m alias b.
func Decode(b []byte, m Message) error {
	c := coder{decode: true}
	for len(b) > 0 {
		var ok bool
		if b, ok = c.next(b); !ok {
			return fmt.Errorf("%w: cut off or no field", ErrMalformed)
		}
		m.fields(&c)
		if c.err != nil {
			return c.err
		}
	}
	return nil
}

// next takes one field off b.
func (c *coder) next(b []byte) (rest []byte, ok bool) {
	tag, n := binary.Uvarint(b)
	if n <= 0 || tag>>3 == 0 || tag>>3 > maxNumber {
		return nil, false
	}
	b = b[n:]
	c.num, c.typ, c.data = int(tag>>3), int(tag&7), nil
	switch c.typ {
	case typeVarint:
		if c.val, n = binary.Uvarint(b); n <= 0 {
			return nil, false
		}
	case typeFixed64:
		if n = 8; len(b) < n {
			return nil, false
		}
		c.val = binary.LittleEndian.Uint64(b)
	case typeBytes:
		size, k := binary.Uvarint(b)
		if k <= 0 || size > uint64(len(b)-k) {
			return nil, false
		}
		n = k + int(size)
		c.data = b[k:n:n]
	case typeFixed32:
		if n = 4; len(b) < n {
			return nil, false
		}
	default: // groups are of the past
		return nil, false
	}
	return b[n:], true
}

// The types of fields, and the largest number of one.
const (
	typeVarint  = 0
	typeFixed64 = 1
	typeBytes   = 2
	typeFixed32 = 5

	maxNumber = 1<<29 - 1
)

// coder encodes all fields, or decodes the one field it holds.
type coder struct {
	out []byte

	decode bool
	num    int
	typ    int
	val    uint64
	data   []byte
	err    error
}

// holds says whether the field to decode is this one.
func (c *coder) holds(num int, typ int) bool {
	if c.num != num || c.err != nil {
		return false
	}
	if c.typ != typ {
		c.fail("field %d has type %d", num, c.typ)
		return false
	}
	return true
}

func (c *coder) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
}

func (c *coder) tag(num, typ int) {
	c.out = binary.AppendUvarint(c.out, uint64(num)<<3|uint64(typ))
}

func (c *coder) varint(num int, v uint64) {
	c.tag(num, typeVarint)
	c.out = binary.AppendUvarint(c.out, v)
}

func (c *coder) uint64(num int, v *uint64) {
	if !c.decode {
		if *v != 0 {
			c.varint(num, *v)
		}
	} else if c.holds(num, typeVarint) {
		*v = c.val
	}
}

func (c *coder) uint32(num int, v *uint32) {
	if !c.decode {
		if *v != 0 {
			c.varint(num, uint64(*v))
		}
	} else if c.holds(num, typeVarint) {
		if c.val > math.MaxUint32 {
			c.fail("field %d is too large", num)
			return
		}
		*v = uint32(c.val)
	}
}

func (c *coder) int64(num int, v *int64) {
	u := uint64(*v)
	c.uint64(num, &u)
	*v = int64(u)
}

func (c *coder) bool(num int, v *bool) {
	if !c.decode {
		if *v {
			c.varint(num, 1)
		}
	} else if c.holds(num, typeVarint) {
		*v = c.val != 0
	}
}

func (c *coder) float64(num int, v *float64) {
	if !c.decode {
		if *v != 0 {
			c.tag(num, typeFixed64)
			c.out = binary.LittleEndian.AppendUint64(c.out, math.Float64bits(*v))
		}
	} else if c.holds(num, typeFixed64) {
		*v = math.Float64frombits(c.val)
	}
}

// optional is a number that may be absent.
func (c *coder) optional(num int, v **uint64) {
	if !c.decode {
		if *v != nil {
			c.varint(num, **v)
		}
	} else if c.holds(num, typeVarint) {
		n := c.val
		*v = &n
	}
}

func (c *coder) string(num int, v *string) {
	if !c.decode {
		if *v != "" {
			c.appendString(num, *v)
		}
	} else if c.holds(num, typeBytes) {
		*v = c.text()
	}
}

func (c *coder) appendString(num int, v string) {
	c.tag(num, typeBytes)
	c.out = binary.AppendUvarint(c.out, uint64(len(v)))
	c.out = append(c.out, v...)
}

func (c *coder) text() string {
	if !utf8.Valid(c.data) {
		c.fail("field %d is not UTF-8", c.num)
		return ""
	}
	return string(c.data)
}

// raw is a string of arbitrary bytes: arguments, environment, paths.
func (c *coder) raw(num int, v *string) {
	if !c.decode {
		if *v != "" {
			c.appendString(num, *v)
		}
	} else if c.holds(num, typeBytes) {
		*v = string(c.data)
	}
}

func (c *coder) bytes(num int, v *[]byte) {
	if !c.decode {
		if len(*v) > 0 {
			c.tag(num, typeBytes)
			c.out = binary.AppendUvarint(c.out, uint64(len(*v)))
			c.out = append(c.out, *v...)
		}
	} else if c.holds(num, typeBytes) {
		*v = c.data
	}
}

// raws is a list of strings of arbitrary bytes; empty ones count.
func (c *coder) raws(num int, v *[]string) {
	if !c.decode {
		for _, s := range *v {
			c.appendString(num, s)
		}
	} else if c.holds(num, typeBytes) && c.room(num, len(*v)) {
		*v = append(*v, string(c.data))
	}
}

func (c *coder) strings(num int, v *[]string) {
	if !c.decode {
		c.raws(num, v)
	} else if c.holds(num, typeBytes) && c.room(num, len(*v)) {
		*v = append(*v, c.text())
	}
}

func (c *coder) room(num int, have int) bool {
	if have >= MaxRepeated {
		c.fail("field %d has more than %d elements", num, MaxRepeated)
		return false
	}
	return true
}

// message encodes a nested message; its length is a varint of fixed width, so
// that nothing is encoded twice or moved.
func (c *coder) message(num int, m Message) {
	c.tag(num, typeBytes)
	at := len(c.out)
	c.out = append(c.out, 0, 0, 0, 0)
	m.fields(c)
	n := len(c.out) - at - 4
	c.out[at] = byte(n) | 0x80
	c.out[at+1] = byte(n>>7) | 0x80
	c.out[at+2] = byte(n>>14) | 0x80
	c.out[at+3] = byte(n>>21) & 0x7f
}

func (c *coder) nested(m Message) {
	if err := Decode(c.data, m); err != nil {
		c.err = err
	}
}

// embedded is a nested message that is always there.
func (c *coder) embedded(num int, m Message) {
	if !c.decode {
		c.message(num, m)
	} else if c.holds(num, typeBytes) {
		c.nested(m)
	}
}

// pointer is a nested message that may be absent.
func pointer[T any, M interface {
	*T
	Message
}](c *coder, num int, v *M) {
	if !c.decode {
		if *v != nil {
			c.message(num, *v)
		}
	} else if c.holds(num, typeBytes) {
		*v = new(T)
		c.nested(*v)
	}
}

// list is a repeated nested message.
func list[T any, M interface {
	*T
	Message
}](c *coder, num int, v *[]T) {
	if !c.decode {
		for i := range *v {
			c.message(num, M(&(*v)[i]))
		}
	} else if c.holds(num, typeBytes) && c.room(num, len(*v)) {
		*v = append(*v, *new(T))
		c.nested(M(&(*v)[len(*v)-1]))
	}
}
