package userspace

import (
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// outQueue bounds what waits for a guest that does not read: at most
	// this many packets of at most MTU bytes.
	outQueue = 128
	// stallAfter is how long a full queue may hold the stack up. A guest
	// that stands still longer (paused, say) loses packets until it moves.
	stallAfter = 2 * time.Second
	// outBatch is how many packets one system call may carry.
	outBatch = 32
)

// link is the NIC's wire as a link endpoint of the stack: frames with their
// lengths on a stream socket. The Ethernet header is added and taken off by
// the endpoint around it.
type link struct {
	conn net.Conn
	mac  tcpip.LinkAddress

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher

	out     chan *stack.PacketBuffer
	done    chan struct{}
	once    sync.Once
	stalled atomic.Bool

	framesIn, framesOut, dropped atomic.Uint64
}

var _ stack.LinkEndpoint = (*link)(nil)

func newLink(conn net.Conn) *link {
	return &link{
		conn: conn,
		mac:  tcpip.LinkAddress(mustMAC(gatewayMAC)),
		out:  make(chan *stack.PacketBuffer, outQueue),
		done: make(chan struct{}),
	}
}

// read takes frames until the wire ends; the error is how.
func (l *link) read() error {
	fr := newFrameReader(l.conn)
	for {
		frame, err := fr.next()
		if err != nil {
			return err
		}
		l.framesIn.Add(1)
		if !admit(frame) {
			l.dropped.Add(1)
			continue
		}
		l.mu.RLock()
		d := l.dispatcher
		l.mu.RUnlock()
		if d == nil {
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
			Payload: buffer.MakeWithView(buffer.NewViewWithData(frame)),
		})
		d.DeliverNetworkPacket(0, pkt)
		pkt.DecRef()
	}
}

// write sends what the stack gave until the link is closed or the wire fails.
func (l *link) write() error {
	batch := make([]*stack.PacketBuffer, 0, outBatch)
	heads := make([]byte, 4*outBatch)
	iov := make(net.Buffers, 0, 4*outBatch)
	for {
		batch = batch[:0]
		select {
		case p := <-l.out:
			batch = append(batch, p)
		case <-l.done:
			return nil
		}
	more:
		for len(batch) < outBatch {
			select {
			case p := <-l.out:
				batch = append(batch, p)
			default:
				break more
			}
		}
		iov = iov[:0]
		for i, p := range batch {
			head := heads[4*i : 4*i+4]
			binary.BigEndian.PutUint32(head, uint32(p.Size()))
			iov = append(iov, head)
			iov = append(iov, p.AsSlices()...)
		}
		bufs := iov // WriteTo eats its slice
		_, err := bufs.WriteTo(l.conn)
		for _, p := range batch {
			p.DecRef()
		}
		if err != nil {
			return err
		}
		l.framesOut.Add(uint64(len(batch)))
		l.stalled.Store(false)
	}
}

// WritePackets queues packets. A full queue holds the caller up, which is what
// slows TCP to the guest's pace, but never for longer than stallAfter.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, p := range pkts.AsSlice() {
		if !l.enqueue(p) {
			l.dropped.Add(1)
			if n == 0 {
				return 0, &tcpip.ErrNoBufferSpace{}
			}
			return n, nil
		}
		n++
	}
	return n, nil
}

func (l *link) enqueue(p *stack.PacketBuffer) bool {
	c := p.Clone()
	select {
	case l.out <- c:
		return true
	case <-l.done:
		c.DecRef()
		return false
	default:
	}
	if !l.stalled.Load() {
		t := time.NewTimer(stallAfter)
		defer t.Stop()
		select {
		case l.out <- c:
			return true
		case <-l.done:
		case <-t.C:
			l.stalled.Store(true)
		}
	}
	c.DecRef()
	return false
}

// Close ends the wire.
func (l *link) Close() {
	l.once.Do(func() {
		close(l.done)
		_ = l.conn.Close() // nothing is owed to the peer
	})
}

func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

func (l *link) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

// MTU is what the Ethernet endpoint around this one takes its header from.
func (*link) MTU() uint32                             { return MTU + header.EthernetMinimumSize }
func (*link) SetMTU(uint32)                           {}
func (*link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress        { return l.mac }
func (*link) SetLinkAddress(tcpip.LinkAddress)        {}
func (*link) Wait()                                   {}
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (*link) AddHeader(*stack.PacketBuffer)           {}
func (*link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*link) SetOnCloseAction(func())                 {}

// Capabilities: the wire is memory and corrupts nothing, so received checksums
// need not be added up again.
func (*link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}
