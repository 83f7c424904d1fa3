package wire

func (m *Request) fields(c *coder) {
	c.string(1, (*string)(&m.Method))
	if c.decode {
		c.bytes(2, &m.Body)
	} else if m.Message != nil {
		c.message(2, m.Message)
	}
}

func (m *HelloRequest) fields(c *coder) {
	c.uint32(1, &m.Version)
	c.uint32(2, &m.MinVersion)
	c.bytes(3, &m.Nonce)
}

func (m *HelloReply) fields(c *coder) {
	c.uint32(1, &m.Version)
	c.bytes(2, &m.Proof)
	c.string(3, &m.BootID)
	c.string(4, &m.Agent)
	c.string(5, &m.State)
	c.bool(6, &m.HasInit)
	c.string(7, &m.Kernel)
	c.uint64(8, &m.UptimeMS)
	c.int64(9, &m.ClockUnix)
	c.string(10, &m.Clock)
}

func (m *Identity) fields(c *coder) {
	c.bytes(1, &m.Token)
	c.string(2, &m.VM)
	c.string(3, &m.Hostname)
	c.string(4, &m.MachineID)
	c.string(5, &m.BootID)
	c.bytes(6, &m.Entropy)
	c.int64(7, &m.ClockUnixNS)
	c.bytes(8, &m.HostKey)
	c.string(9, &m.HostKeyPub)
	c.strings(10, &m.Authorized)
	c.string(11, &m.MAC)
	c.embedded(12, &m.Net)
	c.string(13, &m.Timezone)
	list(c, 14, &m.Env)
}

func (m *Net) fields(c *coder) {
	c.string(1, &m.IPv4)
	c.string(2, &m.Gateway4)
	c.string(3, &m.IPv6)
	c.string(4, &m.Gateway6)
	c.strings(5, &m.DNS)
	c.uint32(6, &m.MTU)
}

func (m *KV) fields(c *coder) {
	c.raw(1, &m.Key)
	c.raw(2, &m.Value)
}

func (m *IdentityReply) fields(c *coder) {
	list(c, 1, &m.Steps)
	c.strings(2, &m.Warnings)
}

func (m *Step) fields(c *coder) {
	c.string(1, &m.Name)
	c.uint64(2, &m.Micros)
}

func (m *HandoverRequest) fields(*coder) {}
func (m *Empty) fields(*coder)           {}

func (m *PrepareRequest) fields(c *coder) {
	c.bool(1, &m.Rehearse)
	c.string(2, &m.MAC)
	c.embedded(3, &m.Net)
	c.strings(4, &m.Authorized)
}

func (m *PrepareReply) fields(c *coder) { c.string(1, &m.Clock) }

func (m *Stats) fields(c *coder) {
	c.uint64(1, &m.UptimeMS)
	c.uint64(2, &m.MemTotal)
	c.uint64(3, &m.MemAvailable)
	c.uint64(4, &m.CPUUserMS)
	c.uint64(5, &m.CPUSystemMS)
	c.uint64(6, &m.IdleMS)
	c.float64(7, &m.Load1)
	c.uint64(8, &m.SystemDiskTotal)
	c.uint64(9, &m.SystemDiskUsed)
	c.uint64(10, &m.WorkDiskTotal)
	c.uint64(11, &m.WorkDiskUsed)
	c.uint64(12, &m.NetRX)
	c.uint64(13, &m.NetTX)
	c.uint32(14, &m.Processes)
	c.uint32(15, &m.Execs)
}

func (m *ClockRequest) fields(c *coder) { c.int64(1, &m.UnixNS) }
func (m *GrowRequest) fields(c *coder)  { c.strings(1, &m.Disks) }
func (m *WaitRequest) fields(c *coder)  { c.string(1, &m.For) }

func (m *WaitReply) fields(c *coder) {
	c.string(1, &m.State)
	c.strings(2, &m.Failed)
}

func (m *ShutdownRequest) fields(c *coder) {
	c.bool(1, &m.Reboot)
	c.uint32(2, &m.TimeoutMS)
}

func (m *ExecRequest) fields(c *coder) {
	c.string(1, &m.ID)
	c.raws(2, &m.Argv)
	list(c, 3, &m.Env)
	c.raw(4, &m.Cwd)
	c.string(5, &m.User)
	c.bool(6, &m.TTY)
	c.uint32(7, &m.Rows)
	c.uint32(8, &m.Cols)
	c.bool(9, &m.Shell)
	c.uint64(10, &m.TimeoutMS)
	c.bool(11, &m.Stdin)
	c.uint64(12, &m.OrphanMS)
	c.bool(13, &m.Toolchain)
}

func (m *AttachRequest) fields(c *coder) {
	c.string(1, &m.ID)
	c.uint64(2, &m.StdoutOff)
	c.uint64(3, &m.StderrOff)
	c.uint32(4, &m.Rows)
	c.uint32(5, &m.Cols)
}

func (m *ExecInput) fields(c *coder) {
	pointer(c, 1, &m.Stdin)
	c.optional(2, &m.CloseAt)
	pointer(c, 3, &m.Resize)
	c.string(4, &m.Signal)
	c.optional(5, &m.AckStdout)
	c.optional(6, &m.AckStderr)
	c.string(7, &m.End)
}

func (m *ExecOutput) fields(c *coder) {
	pointer(c, 1, &m.Started)
	pointer(c, 2, &m.Stdout)
	pointer(c, 3, &m.Stderr)
	c.optional(4, &m.AckStdin)
	pointer(c, 5, &m.Exit)
}

func (m *Started) fields(c *coder) {
	c.uint32(1, &m.PID)
	c.uint64(2, &m.StdinOff)
}

func (m *Chunk) fields(c *coder) {
	c.uint64(1, &m.Off)
	c.bytes(2, &m.Data)
}

func (m *Size) fields(c *coder) {
	c.uint32(1, &m.Rows)
	c.uint32(2, &m.Cols)
}

func (m *Exit) fields(c *coder) {
	c.uint32(1, &m.Code)
	c.string(2, &m.Signal)
	c.bool(3, &m.TimedOut)
	c.string(4, &m.Failure)
	c.string(5, &m.Message)
}

func (m *TarInRequest) fields(c *coder) {
	c.raw(1, &m.Dir)
	c.bool(2, &m.Owner)
	c.bool(3, &m.Overwrite)
	c.bool(4, &m.MakeDir)
}

func (m *TarOutRequest) fields(c *coder) {
	c.raw(1, &m.Dir)
	c.raws(2, &m.Paths)
}

func (m *TarReply) fields(c *coder) {
	c.uint64(1, &m.Entries)
	c.uint64(2, &m.Bytes)
}

func (m *DialRequest) fields(c *coder) {
	c.string(1, &m.Network)
	c.raw(2, &m.Address)
}

func (m *Error) fields(c *coder) {
	c.string(1, &m.Kind)
	c.string(2, &m.Code)
	c.string(3, &m.Message)
}
