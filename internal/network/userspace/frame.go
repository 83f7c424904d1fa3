package userspace

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxFrame is the longest Ethernet frame taken from the wire: the largest IP
// packet, its header and a VLAN tag.
const maxFrame = 65535 + 18

// minFrame is an Ethernet header.
const minFrame = 14

// frameReader takes frames from QEMU's stream socket, where each has its
// length in four bytes, big-endian, before it.
type frameReader struct {
	r   *bufio.Reader
	buf []byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 256<<10), buf: make([]byte, maxFrame)}
}

var errFrame = errors.New("bad frame on the NIC's socket")

// next gives the next frame, valid until the call after. Frames too short to
// have a header are skipped; a length no NIC can have ends the stream, which
// cannot be found again after it. io.EOF is the clean end.
func (f *frameReader) next() ([]byte, error) {
	for {
		var head [4]byte
		if _, err := io.ReadFull(f.r, head[:]); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > maxFrame {
			return nil, fmt.Errorf("%w: length %d", errFrame, n)
		}
		b := f.buf[:n]
		if _, err := io.ReadFull(f.r, b); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if n >= minFrame {
			return b, nil
		}
	}
}

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
)

// admit says whether a frame may enter the stack: ARP, and IP whose source is
// the guest's own. ICMP goes to the gateway and the resolver only: in
// promiscuous mode the stack would answer a ping in anybody's name.
func admit(frame []byte) bool {
	if len(frame) < minFrame {
		return false
	}
	body := frame[minFrame:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherARP:
		return true
	case etherIPv4:
		return admit4(body)
	case etherIPv6:
		return admit6(body)
	}
	return false
}

func admit4(b []byte) bool {
	const icmp = 1
	if len(b) < 20 || [4]byte(b[12:16]) != guest4.As4() {
		return false
	}
	dst := [4]byte(b[16:20])
	return b[9] != icmp || dst == gateway4.As4() || dst == dns4.As4()
}

func admit6(b []byte) bool {
	const icmp6, echo = 58, 128
	if len(b) < 40 {
		return false
	}
	src, dst := [16]byte(b[8:24]), [16]byte(b[24:40])
	linkLocal := src[0] == 0xfe && src[1]&0xc0 == 0x80
	if src != guest6.As16() && !linkLocal && src != [16]byte{} {
		return false
	}
	if b[6] == icmp6 && len(b) > 40 && b[40] == echo {
		return dst == gateway6.As16() || dst == dns6.As16()
	}
	return true
}
