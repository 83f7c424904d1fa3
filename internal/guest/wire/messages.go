// Package wire is the protocol between the daemon and banger's agent in the
// guest: versions, methods, messages and frames. Both ends import it and
// nothing else in common. It uses the standard library only: the agent must be
// small and quick to start under emulation, where protobuf's own module would
// read the program's binary before main to seed itself. docs/agent-protocol.md
// is its prose twin.
//
// The host is always the client: it opens streams and asks, the guest only
// answers. The first message on a stream is a Request; what follows depends on
// its method. Everything that comes from a guest is hostile bytes.
package wire

// Version is the protocol's version; MinVersion is the oldest one that this
// build still speaks.
const (
	Version    = 1
	MinVersion = 1
)

// Limits of the protocol (bytes unless said otherwise).
const (
	MaxMessage    = 4 << 20
	OutputRing    = 1 << 20 // what the agent keeps of each output of a command for a reader that comes back
	MaxArgs       = 4096
	MaxArgsBytes  = 2 << 20
	MaxExecs      = 2048
	StdinWindow   = 1 << 20        // of standard input may be sent beyond AckStdin
	SerialName    = "banger.agent" // the virtio-serial port's name
	VsockPort     = 1024
	AgentCgroup   = "banger.agent" // the agent's own control group, at the root
	CommandCgroup = "banger.exec"  // what the agent starts runs here
)

// Method is what a stream is for.
type Method string

// The methods. "unary" ones answer with one message and end.
const (
	MethodHello    Method = "hello"    // unary: HelloRequest → HelloReply; first after every connect
	MethodIdentity Method = "identity" // unary: Identity → IdentityReply
	MethodHandover Method = "handover" // unary: HandoverRequest → Empty; PID 1 becomes the image's init
	MethodPrepare  Method = "prepare"  // unary: PrepareRequest → PrepareReply; quiet down for a snapshot
	MethodStats    Method = "stats"    // unary: Empty → Stats
	MethodClock    Method = "clock"    // unary: ClockRequest → Empty
	MethodGrow     Method = "grow"     // unary: GrowRequest → Empty; resize mounted disks
	MethodWait     Method = "wait"     // unary: WaitRequest → WaitReply; "system": init has settled
	MethodShutdown Method = "shutdown" // unary: ShutdownRequest → Empty; answers before it acts
	MethodSync     Method = "sync"     // unary: Empty → Empty
	MethodExec     Method = "exec"     // ExecRequest, then ExecInput* / ExecOutput*
	MethodAttach   Method = "attach"   // AttachRequest, then as exec
	MethodTarIn    Method = "tar_in"   // TarInRequest, then raw bytes to the end; → TarReply
	MethodTarOut   Method = "tar_out"  // TarOutRequest → raw tar bytes (Data*), then TarReply
	MethodDial     Method = "dial"     // DialRequest → Empty or error, then raw bytes both ways
)

// HelloRequest asks the guest to prove itself. Only the host can open streams,
// so the guest asks no proof of it.
type HelloRequest struct {
	Version    uint32
	MinVersion uint32
	Nonce      []byte // 32 bytes
}

// HelloReply names the guest. Proof is HMAC-SHA256(token, "guest" || nonce):
// a socket that was swapped for another VM's cannot give it.
type HelloReply struct {
	Version   uint32
	Proof     []byte
	BootID    string
	Agent     string // agent build version
	State     string // "early" (PID 1 is the agent, init not started), "init" (handed over), "alone" (no init in the image)
	HasInit   bool
	Kernel    string
	UptimeMS  uint64
	ClockUnix int64  // guest's wall clock, ns
	Clock     string // current_clocksource
}

// Identity is everything that is a VM's (or a clone's) own and is set by the
// agent. It is the one list; docs/identity.md says what stays shared.
type Identity struct {
	Token       []byte // 32 bytes; replaces the template's
	VM          string // id
	Hostname    string
	MachineID   string // 32 hex digits
	BootID      string // UUID to show in place of the kernel's, or ""
	Entropy     []byte // ≥ 32 bytes, mixed and credited, then reseeded
	ClockUnixNS int64  // host's wall clock
	HostKey     []byte // OpenSSH private key (ed25519), PEM
	HostKeyPub  string // its public line
	Authorized  []string
	MAC         string
	Net         Net
	Timezone    string // "" leaves the image's
	Env         []KV   // written to /etc/environment.d style file for logins, or nothing
}

// Net is the guest's static network configuration.
type Net struct {
	IPv4, Gateway4 string
	IPv6, Gateway6 string
	DNS            []string
	MTU            uint32
}

// KV is a name and a value.
type KV struct{ Key, Value string }

// IdentityReply says what was done and how long each part took.
type IdentityReply struct {
	Steps    []Step
	Warnings []string
}

// Step is a named part of some work with its duration.
type Step struct {
	Name   string
	Micros uint64
}

// HandoverRequest lets PID 1 go on to the image's init.
type HandoverRequest struct{}

// PrepareRequest readies the guest for a snapshot: rehearses identity, runs a
// command once, syncs, drops caches, kills connections.
type PrepareRequest struct {
	Rehearse bool
	// What every clone gets alike; a clone finds it in place. Nothing
	// secret, nothing of one VM.
	MAC        string
	Net        Net
	Authorized []string
}

// PrepareReply says whether a snapshot is sound.
type PrepareReply struct {
	Clock string // current_clocksource
}

// Stats is what the guest says of itself; hearsay.
type Stats struct {
	UptimeMS                       uint64
	MemTotal, MemAvailable         uint64
	CPUUserMS, CPUSystemMS, IdleMS uint64
	Load1                          float64
	SystemDiskTotal, SystemDiskUsed, WorkDiskTotal,
	WorkDiskUsed uint64
	NetRX, NetTX uint64
	Processes    uint32
	Execs        uint32
}

// ClockRequest steps the guest's wall clock.
type ClockRequest struct{ UnixNS int64 }

// GrowRequest grows the filesystems on the named disks ("system", "work").
type GrowRequest struct{ Disks []string }

// WaitRequest waits until the init has settled ("system").
type WaitRequest struct{ For string }

// WaitReply says what was reached ("running", "degraded", "alone").
type WaitReply struct {
	State  string
	Failed []string // failed units
}

// ShutdownRequest stops the guest in order: init first where there is one.
type ShutdownRequest struct {
	Reboot    bool
	TimeoutMS uint32 // after which the agent syncs and powers off itself
}

// ExecRequest starts a command.
type ExecRequest struct {
	ID   string // chosen by the host, unique in the VM; attach finds it again
	Argv []string
	Env  []KV
	// Cwd "" means: the prepared workspace where there is one, else root's home.
	Cwd        string
	User       string // "" is root
	TTY        bool
	Rows, Cols uint32
	// Shell starts the user's login shell; Argv is then empty.
	Shell bool
	// TimeoutMS ends the command with SIGTERM, then SIGKILL; 0 is none.
	TimeoutMS uint64
	// Stdin says whether input will come; otherwise it is /dev/null.
	Stdin bool
	// Orphan is how long the agent keeps the command and its unread output
	// when the reader is gone without an End: ms.
	OrphanMS uint64
	// Toolchain runs it with the guest's mise environment where there is one.
	Toolchain bool
}

// AttachRequest goes on with a command at the offsets the host has got to.
type AttachRequest struct {
	ID         string
	StdoutOff  uint64
	StderrOff  uint64
	Rows, Cols uint32
}

// ExecInput is host → guest; exactly one field is set.
type ExecInput struct {
	Stdin     *Chunk  // at its offset; what the guest has already is ignored
	CloseAt   *uint64 // standard input ends at this offset
	Resize    *Size
	Signal    string // "INT", "TERM", ...
	AckStdout *uint64
	AckStderr *uint64
	// End tells the agent that the reader goes for good: "hup" (terminal
	// gone: SIGHUP, then SIGKILL), "done" (the exit status was received).
	End string
}

// ExecOutput is guest → host; exactly one field is set.
type ExecOutput struct {
	Started  *Started
	Stdout   *Chunk
	Stderr   *Chunk
	AckStdin *uint64
	Exit     *Exit
}

// Started says where input is to go on (after an attach) and the process id.
type Started struct {
	PID      uint32
	StdinOff uint64
}

// Chunk is bytes at an offset of a stream.
type Chunk struct {
	Off  uint64
	Data []byte
}

// Size is a terminal's.
type Size struct{ Rows, Cols uint32 }

// Exit is how a command ended, after all its output.
type Exit struct {
	Code     uint32 // as a shell shows it: 128+n for signal n, 124 for timeout
	Signal   string // "KILL", or ""
	TimedOut bool
	// Failure is set where the command never ran: "not_found" (127),
	// "cannot_run" (126).
	Failure string
	Message string
}

// TarInRequest unpacks the tar stream that follows beneath Dir.
type TarInRequest struct {
	Dir       string
	Owner     bool // keep numeric owners; otherwise root's
	Overwrite bool
	MakeDir   bool
}

// TarOutRequest asks for Paths (relative to Dir) as a tar stream.
type TarOutRequest struct {
	Dir   string
	Paths []string
}

// TarReply ends a tar stream.
type TarReply struct {
	Entries uint64
	Bytes   uint64
}

// DialRequest connects to an address inside the guest: "tcp" "127.0.0.1:22",
// "unix" path, or "agent" "ssh" for the agent's own ssh server.
type DialRequest struct {
	Network string
	Address string
}

// Error is a failure as the agent tells it: one of errs' kinds, a stable code
// and one line.
type Error struct {
	Kind    string
	Code    string
	Message string
}

// Empty is no message.
type Empty struct{}
