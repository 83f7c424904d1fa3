package cli

import "github.com/spf13/cobra"

// vmCommands are the verbs of VMs.
func vmCommands(a *app) []*cobra.Command {
	workspace := noun(&cobra.Command{Use: "workspace", Short: "Copies of directories in VMs"})
	workspace.AddCommand(newWorkspacePrepare(a))
	return []*cobra.Command{
		newVMRun(a), newVMCreate(a), newVMStart(a), newVMStop(a), newVMRestart(a), newVMKill(a), newVMDelete(a, "delete"),
		newVMList(a, "list"), newVMShow(a), newVMExec(a), newVMShell(a), newVMSSH(a), newVMCopy(a), newVMLogs(a), newVMStats(a),
		newVMSet(a), newVMRename(a), newVMPrune(a), newVMWait(a), workspace,
	}
}

// nounCommands are the other nouns and the single words.
func nounCommands(a *app) []*cobra.Command {
	image := noun(&cobra.Command{Use: "image", Short: "What machines are made from"})
	image.AddCommand(newImageList(a, "list"), newImageShow(a), newImagePull(a, "pull"))
	kernel := noun(&cobra.Command{Use: "kernel", Short: "What machines boot"})
	kernel.AddCommand(newKernelList(a), newKernelShow(a), newKernelPull(a))
	template := noun(&cobra.Command{Use: "template", Short: "Booted machines that new ones are cloned from"})
	template.AddCommand(newTemplateList(a), newTemplateDelete(a))
	daemon := noun(&cobra.Command{Use: "daemon", Short: "banger's background process"})
	daemon.AddCommand(newDaemonStatus(a), newDaemonStart(a), newDaemonStop(a), newDaemonLogs(a))
	system := noun(&cobra.Command{Use: "system", Short: "This installation"})
	system.AddCommand(newSystemInfo(a), newSystemGC(a))
	config := noun(&cobra.Command{Use: "config", Short: "Settings"})
	config.AddCommand(newConfigShow(a), newConfigPath(a), newConfigEdit(a))
	return []*cobra.Command{
		image, kernel, template, daemon, system, config,
		newEvents(a), newDoctor(a), newSchema(a), newCompletion(a), newSSHProxy(a), newMan(a),
	}
}

// shortForms are the daily verbs without their noun.
func shortForms(a *app) []*cobra.Command {
	images := newImageList(a, "images")
	return []*cobra.Command{
		newVMRun(a), newVMList(a, "ps"), newVMExec(a), newVMShell(a), newVMSSH(a), newVMCopy(a), newVMLogs(a),
		newVMStop(a), newVMDelete(a, "rm"), newImagePull(a, "pull"), images,
	}
}
