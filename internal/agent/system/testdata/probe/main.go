// Command probe is the only program of the end-to-end tests' images: it looks
// at the guest from inside, ends it in the ways there are, and is an init.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	if os.Getpid() == 1 {
		initMain()
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// initMain says that it was here, with the identity it found, and waits for
// the signal that asks for a stop.
func initMain() {
	id, _ := os.ReadFile("/etc/machine-id")
	_ = os.WriteFile("/run/init", append([]byte(strings.Join(os.Args, " ")+" "), id...), 0o644)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR2)
	<-c
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func run(args []string) error {
	switch args[0] {
	case "cat":
		for _, name := range args[1:] {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			os.Stdout.Write(b)
		}
	case "write":
		return os.WriteFile(args[1], []byte(args[2]), 0o644)
	case "ls":
		entries, err := os.ReadDir(args[1])
		for _, e := range entries {
			fmt.Println(e.Type(), e.Name())
		}
		return err
	case "poweroff":
		return syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		return syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	case "killagent": // which started this
		return syscall.Kill(os.Getppid(), syscall.SIGKILL)
	case "kill":
		pid, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		sig, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.Signal(sig))
	}
	return nil
}
