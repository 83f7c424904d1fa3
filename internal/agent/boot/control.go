package boot

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
)

// The file descriptors the agent inherits from PID 1.
const (
	controlFD = 3
	systemFD  = 4 // the root directory of the system disk's filesystem
)

// agentArg0 is the agent's argv[0]. systemd spares processes whose name
// begins with "@" when it kills the rest at shutdown.
const agentArg0 = "@banger-agent"

// Handoff is what PID 1 tells the agent it starts.
type Handoff struct {
	Token    []byte            `json:"token"`
	Init     string            `json:"init"`  // the image's init, or ""
	Disks    map[string]string `json:"disks"` // serial → kernel name
	Steps    []Step            `json:"steps"`
	Warnings []string          `json:"warnings"`
	// System says that systemFD is open.
	System bool `json:"system"`
}

// Commands from the agent to PID 1: one byte each.
const (
	cmdHandover = 'h'
	cmdPowerOff = 'p'
	cmdReboot   = 'r'
)

// Control is the agent's line to PID 1.
type Control struct {
	Handoff Handoff
	// System is the root directory of the system disk, or nil.
	System *os.File

	mu   sync.Mutex
	conn *os.File // nil once PID 1 is the image's init
	r    *bufio.Reader
}

// IsAgent says whether this process was started by PID 1 as the agent.
func IsAgent(args []string) bool { return len(args) > 0 && args[0] == agentArg0 }

// TakeControl reads what PID 1 left for the agent in its inherited files.
func TakeControl() (*Control, error) {
	// What was inherited here is not for the commands that are started.
	syscall.CloseOnExec(controlFD)
	conn := os.NewFile(controlFD, "pid 1")
	c, err := newControl(conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if c.Handoff.System {
		syscall.CloseOnExec(systemFD)
		c.System = os.NewFile(systemFD, "system disk")
	}
	return c, nil
}

func newControl(conn *os.File) (*Control, error) {
	c := &Control{conn: conn, r: bufio.NewReader(conn)}
	line, err := c.r.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("hand-off from pid 1: %w", err)
	}
	if err := json.Unmarshal(line, &c.Handoff); err != nil {
		return nil, fmt.Errorf("hand-off from pid 1: %w", err)
	}
	return c, nil
}

// Handover makes PID 1 the image's init and returns when it is. Once done it
// does nothing; in an image without an init likewise.
func (c *Control) Handover() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil || c.Handoff.Init == "" {
		return nil
	}
	if _, err := c.conn.Write([]byte{cmdHandover}); err != nil {
		return fmt.Errorf("hand over to %s: %w", c.Handoff.Init, err)
	}
	// The line closes by itself when PID 1 becomes another program; words
	// come only when it could not.
	answer, err := c.r.ReadString('\n')
	if errors.Is(err, io.EOF) && answer == "" {
		err = c.conn.Close()
		c.conn = nil
		return err
	}
	return fmt.Errorf("hand over to %s: %s", c.Handoff.Init, strings.TrimSpace(answer))
}

// Handed says whether PID 1 is the image's init.
func (c *Control) Handed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn == nil
}

// Stop asks PID 1 to end every process, unmount and stop the machine. It is
// false where PID 1 is the image's init, which has to be asked its own way.
func (c *Control) Stop(reboot bool) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return false, nil
	}
	cmd := byte(cmdPowerOff)
	if reboot {
		cmd = cmdReboot
	}
	_, err := c.conn.Write([]byte{cmd})
	return true, err
}
