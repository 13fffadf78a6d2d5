import runpy

if __name__ == '__main__':
    runpy.run_module('detzoo.cli.export_images', run_name='__main__', alter_sys=True)
